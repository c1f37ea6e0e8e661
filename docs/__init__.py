"""The pages' own folder; `docs.figures` computes what they show."""
