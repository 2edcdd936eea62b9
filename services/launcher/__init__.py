"""The `roadtrain` command: starts services, fetches models, talks to a running server. It knows no service's insides."""
