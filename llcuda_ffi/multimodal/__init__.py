"""Images and sound in prompts: read and bounded, encoded once, put where they stand in the text."""
