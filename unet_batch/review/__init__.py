"""What people look at after a run: the report, its pictures, and two sides compared."""
