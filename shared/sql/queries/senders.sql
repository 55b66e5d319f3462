-- name: add_sender
-- A second sender of the same name replaces token and number, and says so by its version.
INSERT INTO senders (id, name, phone_number_id, number, token_sealed, waba_id, graph_api_version,
  rate, burst, shard, is_default)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (name) DO UPDATE SET phone_number_id = excluded.phone_number_id,
  number = excluded.number, token_sealed = excluded.token_sealed, waba_id = excluded.waba_id,
  graph_api_version = excluded.graph_api_version, rate = excluded.rate, burst = excluded.burst,
  is_default = excluded.is_default, version = senders.version + 1;

-- name: no_default
-- There is at most one default.
UPDATE senders SET is_default = false, version = version + 1 WHERE is_default AND name <> $1;

-- name: senders
-- All of them: a worker keeps them in memory.
SELECT * FROM senders ORDER BY name;

-- name: sender
-- By name or id; NULL asks for the default.
SELECT * FROM senders WHERE ($1::text IS NULL AND is_default) OR name = $1 OR id = $1 LIMIT 1;

-- name: set_rate
-- NULL: the settings' default.
UPDATE senders SET rate = $2, version = version + 1 WHERE id = $1;

-- name: set_sender_state
-- The version is how a shard knows that it has not heard of this yet.
UPDATE senders SET state = $2, why = $3, until_ms = $4, version = version + 1 WHERE id = $1;
