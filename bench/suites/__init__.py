"""What runs a suite: the command, its workers, a cell, peak memory."""
