"""The tests of one server's driver run where that server is."""

import os

collect_ignore = [] if os.environ.get("FLUXSERVE_TEST_POSTGRESQL") else ["test_postgres.py"]
