import os
import signal

# as the command line does, before torch starts its threads
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# a shell's background jobs ignore Ctrl-C, and so would every command that a test starts and interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
