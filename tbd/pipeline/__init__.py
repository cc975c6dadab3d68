"""A run of DVC: the audits it knows, what it locks, and one process at a time."""
