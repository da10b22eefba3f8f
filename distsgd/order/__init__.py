"""The order of service on a model of machines: laws, fleets, schedules."""
