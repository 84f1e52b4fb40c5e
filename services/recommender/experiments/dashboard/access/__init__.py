"""Who is looking, and whether a form came from our own page.

sessions    what a reader may do, and the signed cookie that remembers a sign-in
secret      the key of both signatures
sign_in     from a request to a session: by proxy header, by cookie, or as "local" while no keys exist
forgery     the token in every form and the Origin of every POST
"""
