"""What another size or another policy of L1 would do for the traffic that there is."""
