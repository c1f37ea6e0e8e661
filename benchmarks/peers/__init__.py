"""What runs in the other frameworks' environments; none of it is imported by Glimpse's own."""
