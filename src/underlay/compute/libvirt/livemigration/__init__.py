"""Guests that move to another host while they run.

What stays true whoever is killed: libvirt has one of the two hosts run the guest, each host removes only what it made itself,
and only once it is known where the guest is. Who has prepared for a guest, or is sending one away, has put a mark of that into
the instance's directory, and whoever starts on that host next goes by it.
"""
