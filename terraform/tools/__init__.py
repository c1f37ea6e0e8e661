"""Checks of the Terraform beside it that need neither a provider nor Google Cloud."""
