"""What a policy would have made of recorded traffic."""
