"""Requests and e-mail to addresses that users choose."""
