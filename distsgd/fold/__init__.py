"""The numbers along an order."""
