"""The networks: frozen backbones, learnt decoders, and the models made of them. Needs declip[torch]."""
