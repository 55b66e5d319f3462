-- name: add_user
-- The address is the log-in name, unique.
INSERT INTO users (id, email, password_hash, role) VALUES ($1::uuid, $2, $3, $4);

-- name: user_by_email
-- For the log-in.
SELECT * FROM users WHERE email = $1;

-- name: user
-- For each request of a session: a role taken away counts at once.
SELECT * FROM users WHERE id = $1::uuid;

-- name: users
-- For lists.
SELECT * FROM users ORDER BY email;

-- name: set_password
-- The caller ends the sessions.
UPDATE users SET password_hash = $2 WHERE id = $1::uuid;

-- name: add_key
-- Only the hash of a key is kept.
INSERT INTO api_keys (id, user_id, name, sha256, scopes, last4, expires_at)
VALUES ($1, $2::uuid, $3, $4, $5, $6, to_timestamp($7::bigint / 1000.0));

-- name: key
-- With its user, in one round trip.
SELECT k.*, u.role, u.is_disabled FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.id = $1;

-- name: keys
-- For lists.
SELECT k.*, u.role, u.is_disabled FROM api_keys k JOIN users u ON u.id = k.user_id
WHERE ($1::uuid IS NULL OR k.user_id = $1::uuid) ORDER BY k.created_at;

-- name: revoke_key
-- Revoked, never deleted: the audit log names it.
UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL;

-- name: audit
-- Append only.
INSERT INTO audit_log (actor, action, object, result, reason, request_id, address)
VALUES ($1, $2, $3, $4, $5, $6, $7);
