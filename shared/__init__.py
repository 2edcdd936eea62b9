"""What every service shares: configuration, errors, wire settings, the queue. It knows no service, no kernel and no torch."""
