"""What is checked of a model file before libllama may open it."""
