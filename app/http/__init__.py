"""HTTP parts that know no images: server, protocols, responses, negotiation, paging."""
