"""What a problem of Keras has: a model that each process makes again, and its work there."""
