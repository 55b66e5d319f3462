-- name: take_notice
-- Locks the subject until the end of the transaction; nothing comes back for what is old or repeated.
INSERT INTO notices (waba_id, subject, at_s, event) VALUES ($1, $2, $3, $4)
ON CONFLICT (waba_id, subject) DO UPDATE SET at_s = excluded.at_s, event = excluded.event
WHERE (notices.at_s, notices.event) IS DISTINCT FROM (excluded.at_s, excluded.event)
  AND notices.at_s <= excluded.at_s
RETURNING true;
