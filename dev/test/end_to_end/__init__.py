"""The end-to-end tests, a file a subject; ../end_to_end.py runs them."""
