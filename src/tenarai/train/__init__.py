"""Training: the schedule, the optimiser, the loop, and what it shows and keeps."""
