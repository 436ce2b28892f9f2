"""Getting data from their publishers: what there is, downloads that go on where they broke off, unpacking."""
