"""The pages this server shows: a landing page now, the playground."""
