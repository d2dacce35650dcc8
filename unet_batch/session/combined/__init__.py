"""Sessions that run other sessions, and combine what they return."""
