"""Views: what services return, the API sends and clients parse. One frozen model per answer, used by all of them.

Modules by subject: `runs`, `events`, `reviews`, `dead_letters`, `deployments`, `installation`, `audit`. A view holds what is
shown to a principal who may read it, and no row of the database.
"""
