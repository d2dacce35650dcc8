"""What is to be done: the job held against its model, the archive and what is published."""
