"""The stages that a run is made of; each is a function of the run's context, registered by name."""
