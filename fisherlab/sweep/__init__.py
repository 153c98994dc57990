"""Groups of replicas: who works on which, and what a sweep came to. Importing this imports no torch."""
