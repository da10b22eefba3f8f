"""What a comparison says: numbers, sentences, pictures, and a page that works offline."""
