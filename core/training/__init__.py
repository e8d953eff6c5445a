"""What training is: batches, backends, one loop, and what it records."""
