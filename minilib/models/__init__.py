"""The methods: a folder a paper, with its model, its configuration and its
released weights."""
