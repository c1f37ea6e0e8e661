"""HTTP parts without images: server, protocols, responses, negotiation, pagination."""
