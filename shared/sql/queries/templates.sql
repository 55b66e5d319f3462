-- name: due_lists
-- A list nobody has ever fetched, one whose time has come, one that somebody asked for since.
SELECT n.waba_id FROM unnest($1::text[]) AS n (waba_id)
LEFT JOIN template_lists l ON l.waba_id = n.waba_id
WHERE l.waba_id IS NULL
  OR (l.not_before <= now() AND (l.due_at <= now() OR l.asked_at > l.tried_at));

-- name: take_list
-- One worker of the fleet gets it; should that one die, the others see it as due again soon.
INSERT INTO template_lists (waba_id, is_being_read, tried_at, not_before, due_at)
VALUES ($1, true, now(), now() + make_interval(secs => $2), now() + make_interval(secs => $2))
ON CONFLICT (waba_id) DO UPDATE SET is_being_read = true, tried_at = excluded.tried_at,
  not_before = excluded.not_before, due_at = excluded.due_at
WHERE template_lists.not_before <= now() AND (template_lists.due_at <= now()
  OR template_lists.asked_at > template_lists.tried_at)
RETURNING waba_id;

-- name: ask_for_list
-- A worker sees it within a second.
INSERT INTO template_lists (waba_id, asked_at) VALUES ($1, clock_timestamp())
ON CONFLICT (waba_id) DO UPDATE SET asked_at = excluded.asked_at
RETURNING (extract(epoch FROM asked_at) * 1000)::bigint AS asked_ms;

-- name: list_missed
-- What was read before stays, and grows old.
UPDATE template_lists SET is_being_read = false, error = $2, not_before = now() + make_interval(secs => $3),
  due_at = now() + make_interval(secs => $4)
WHERE waba_id = $1;

-- name: list_read
-- As of when it was begun: what Meta changed meanwhile may be missing.
UPDATE template_lists SET is_being_read = false, error = '', synced_at = tried_at,
  not_before = now() + make_interval(secs => $2), due_at = now() + make_interval(secs => $3)
WHERE waba_id = $1;

-- name: keep_templates
-- A template keeps its place in the list.
INSERT INTO templates (waba_id, name, language, definition)
SELECT $1, n.name, n.language, n.definition
FROM unnest($2::text[], $3::text[], $4::bytea[]) AS n (name, language, definition)
ON CONFLICT (waba_id, name, language) DO UPDATE SET definition = excluded.definition
WHERE templates.definition <> excluded.definition;

-- name: drop_templates
-- Meta no longer has them.
DELETE FROM templates t WHERE t.waba_id = $1 AND NOT EXISTS (
  SELECT 1 FROM unnest($2::text[], $3::text[]) AS n (name, language)
  WHERE n.name = t.name AND n.language = t.language);

-- name: template_list
-- How the list of one account stands.
SELECT coalesce((extract(epoch FROM synced_at) * 1000)::bigint, 0) AS synced_ms,
  coalesce((extract(epoch FROM now() - synced_at) * 1000)::bigint, 0) AS age_ms,
  error, NOT is_being_read AND tried_at IS NOT NULL
    AND (asked_at IS NULL OR tried_at >= asked_at) AS is_settled,
  (extract(epoch FROM greatest(not_before - now(), interval '0')) * 1000)::bigint AS rest_ms
FROM template_lists WHERE waba_id = $1;

-- name: templates
-- Newest first.
SELECT number, definition FROM templates
WHERE waba_id = $1 AND ($2::bigint = 0 OR number < $2) ORDER BY number DESC LIMIT $3;

-- name: templates_named
-- Every language of a template.
SELECT number, definition FROM templates WHERE waba_id = $1 AND name = $2 ORDER BY language;
