"""What every HTTP service shares: the application, its middleware, problem+json, strict JSON, access, health.

Owns no route of `/v1` and no business rule. Import from its modules: `app.create_app`, `auth.require`,
`health.Readiness`.
"""
