"""The frozen policy of KL terms, in actors of its own; started only when a term asks for it."""
