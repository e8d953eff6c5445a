import os

# as the command line does, before torch starts its threads
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
