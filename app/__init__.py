"""The API service: uploads in, results out."""
