-- name: add_job
-- The row is the acceptance: once it is committed the job will be sent.
INSERT INTO bulk_jobs (id, owner, campaign_id, name, kind, template_name, template_language,
  sender_id, sender_name, message, vars, chunk_size, recipients, blob, intake, rate, weight,
  priority, scheduled_ms, expires_ms, on_unknown, reserved, step, born, idempotency_key,
  idempotency_route, request_hash, response, created_ms, parent, is_sandbox,
  metadata, is_retry, template_category)
VALUES ($1, $2::uuid, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
  $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31,
  $32::jsonb, $33, $34);

-- name: accept_for
-- False while the sender is being moved; otherwise nobody moves it before this transaction ends.
-- Whose connection hangs from now on holds its idempotency key for five seconds, not for ever.
SELECT pg_try_advisory_xact_lock_shared(hashtextextended('sender:' || $1, 0)),
  set_config('idle_in_transaction_session_timeout', '5s', true);

-- name: shard_of_sender
-- A statement of its own: it must see what a move committed before the lock was had.
SELECT shard FROM senders WHERE id = $1;

-- name: drop_job
-- Redis answered a refusal: nothing happened, so nothing may stay.
DELETE FROM bulk_jobs WHERE id = $1 AND state = 'accepted';

-- name: job
-- The owner stands inside the question: what is foreign looks absent.
SELECT * FROM bulk_jobs WHERE id = $1 AND ($2::uuid IS NULL OR owner = $2::uuid);

-- name: jobs
-- Keyset, newest first: no repeat and no gap while rows are added.
SELECT * FROM bulk_jobs
WHERE ($1::uuid IS NULL OR owner = $1::uuid)
  AND ($2::text[] IS NULL OR state = ANY ($2))
  AND ($3::text IS NULL OR sender_name = $3)
  AND ($4::text IS NULL OR campaign_id = $4)
  AND ($5::text IS NULL OR position(lower($5) in lower(concat_ws(' ', name, id, campaign_id))) > 0)
  AND ($6::bigint = 0 OR created_ms >= $6) AND ($7::bigint = 0 OR created_ms < $7)
  AND ($8::bigint = 0 OR number < $8) AND ($10::jsonb IS NULL OR metadata @> $10::jsonb)
ORDER BY number DESC LIMIT $9;

-- name: idempotent
-- The answer lies beside the row it made, so a crash cannot make a second job.
SELECT * FROM bulk_jobs WHERE owner = $1::uuid AND idempotency_route = $2 AND idempotency_key = $3;

-- name: response
-- The first answer, to be given again.
SELECT response FROM bulk_jobs WHERE id = $1;

-- name: pending_jobs
-- What the publisher looks at: not final yet, oldest first.
SELECT * FROM bulk_jobs WHERE state NOT IN ('completed', 'cancelled') AND number > $1
ORDER BY number LIMIT $2;

-- name: blob
-- A job's recipients, compressed.
SELECT blob FROM bulk_jobs WHERE id = $1;

-- name: set_reserved
-- Committed before Redis hears of it: a lost Redis leaves no more than this in doubt.
UPDATE bulk_jobs j SET reserved = greatest(j.reserved, n.mark)
FROM unnest($1::text[], $2::integer[]) AS n (id, mark) WHERE j.id = n.id;

-- name: counts_by_state
-- For the admin's figures.
SELECT state, count(*)::integer AS n FROM bulk_jobs
WHERE state NOT IN ('completed', 'cancelled') GROUP BY state;

-- name: accepted
-- How long jobs took, once they are over.
SELECT id, kind, created_ms FROM bulk_jobs WHERE id = ANY ($1);

-- name: active_jobs
-- Whose recipients may be on their way; those that run come first, for whoever cannot read all.
SELECT id FROM bulk_jobs WHERE state IN ('queued', 'running', 'paused', 'cancelling')
ORDER BY state <> 'running', number LIMIT $1;

-- name: unknown_open
-- Recipients nobody knows about; the partial index makes it as dear as jobs that have any.
SELECT coalesce(sum(unknown), 0)::bigint FROM bulk_jobs WHERE unknown > 0;

-- name: lock_jobs
-- Serialises writers of the same jobs, so that the rank read before is the rank replaced.
SELECT j.number, j.id, j.chunk_size, j.sender_id, coalesce(s.parks, 0) AS parks
FROM bulk_jobs j LEFT JOIN senders s ON s.id = j.sender_id
WHERE j.id = ANY ($1) ORDER BY j.number FOR UPDATE OF j;

-- name: move_counters
-- Counters move by what the upsert changed and by nothing else.
UPDATE bulk_jobs j SET sent = j.sent + n.sent, failed = j.failed + n.failed,
  skipped = j.skipped + n.skipped, unknown = j.unknown + n.unknown,
  cancelled = j.cancelled + n.cancelled
FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[], $5::integer[], $6::integer[])
  AS n (number, sent, failed, skipped, unknown, cancelled) WHERE j.number = n.number;

-- name: set_states
-- A state is taken only with a higher version; each job stands here once. What people do is in the
-- audit log before it is done; what stops or starts a job by itself comes into it here.
WITH moved AS (
  UPDATE bulk_jobs b SET state = n.state, version = n.version, by_whom = n.by_whom,
    reason = n.reason,
    started_ms = greatest(b.started_ms, n.started_ms),
    finished_ms = greatest(b.finished_ms, n.finished_ms),
    end_event = coalesce(n.end_event, b.end_event)
  FROM json_to_recordset($1::json) AS n (id text, state text, version bigint, by_whom text,
    reason text, started_ms bigint, finished_ms bigint, end_event text)
  JOIN bulk_jobs was ON was.id = n.id
  WHERE b.id = n.id AND b.version < n.version
  RETURNING b.id, b.state, b.by_whom, b.reason, was.state AS before)
INSERT INTO audit_log (actor, action, object, result, reason)
SELECT by_whom, CASE state WHEN 'paused' THEN 'job.pause' ELSE 'job.resume' END, id, 'ok', reason
FROM moved
WHERE by_whom = 'system' AND (state = 'paused' AND before <> 'paused'
  OR before = 'paused' AND state IN ('scheduled', 'queued', 'running'));

-- name: ended
-- Final, and every recipient logged: a dead writer's rows may come after the end itself.
SELECT id, version FROM bulk_jobs WHERE id = ANY ($1) AND state IN ('completed', 'cancelled')
  AND sent + failed + skipped + unknown + cancelled = recipients;

-- name: same_template
-- A template belongs to a WABA; a sender whose WABA nobody has named stands for itself.
SELECT o.id FROM bulk_jobs j JOIN senders s ON s.id = j.sender_id
JOIN bulk_jobs o ON o.template_name = j.template_name AND o.template_language = j.template_language
JOIN senders t ON t.id = o.sender_id
WHERE j.id = $1 AND o.id <> j.id AND o.state NOT IN ('completed', 'cancelled')
  AND (t.id = s.id OR t.waba_id = s.waba_id)
ORDER BY o.number;

-- name: jobs_of_template
-- Unfinished ones; a template belongs to a WABA.
SELECT j.id FROM bulk_jobs j JOIN senders s ON s.id = j.sender_id
WHERE s.waba_id = $1 AND j.template_name = $2 AND j.template_language = $3
  AND j.state NOT IN ('completed', 'cancelled')
ORDER BY j.number;

-- name: late_trips
-- Content errors that webhooks told of messages Graph had taken and not held back, and most of what.
SELECT job, sum(n)::integer AS trips, (array_agg(code ORDER BY n DESC, code))[1] AS code FROM (
  SELECT j.id AS job, l.receipt_code AS code, count(*) AS n
  FROM bulk_jobs j JOIN campaign_logs l ON l.job_number = j.number
  WHERE j.number = ANY ($1::bigint[]) AND j.state NOT IN ('completed', 'cancelled')
    AND l.receipt = 2 AND l.receipt_code = ANY ($2::integer[])
    AND coalesce(l.message_status, 'accepted') = 'accepted'
  GROUP BY j.id, l.receipt_code
) AS t GROUP BY job;
