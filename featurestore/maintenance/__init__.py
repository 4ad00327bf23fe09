"""Work on a store that is not a user's job: check every byte, repair what is damaged, remove what nobody needs.

Imports everything else of ``featurestore``; nothing there imports this package.
"""
