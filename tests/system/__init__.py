"""The servers and programs that tests need beside Python: found, installed, started, stopped."""
