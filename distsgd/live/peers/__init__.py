"""The other parties of a live run: workers and the evaluator."""
