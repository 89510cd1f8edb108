"""Steps 2 and 3: epochs, their scores, runs that resume."""
