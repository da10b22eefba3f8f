"""What a comparison says: statistics (pure), charts, and a page that works offline."""
