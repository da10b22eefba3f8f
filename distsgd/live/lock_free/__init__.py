"""Hogwild!: workers that change shared memory themselves."""
