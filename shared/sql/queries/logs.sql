-- name: upsert_logs
-- A batch may hold a recipient twice, and only a higher rank may replace (pitfalls P9). Whose number
-- was erased (0) gets no message's id again: it holds the number. As JSON a row costs the worker a
-- quarter of what thirteen arrays do: asyncpg asks of each element whether it is an array too.
WITH incoming AS (
  SELECT DISTINCT ON (job_number, position) *
  FROM json_to_recordset($1::json) AS n (job_number bigint, position integer, phone bigint,
    outcome text, rank smallint, reason integer, attempts smallint, at_ms bigint, wamid text,
    code integer, error text, trace text, message_status text)
  ORDER BY job_number, position, rank DESC
), before AS (
  SELECT l.job_number, l.position, l.outcome FROM campaign_logs l
  JOIN incoming i ON i.job_number = l.job_number AND i.position = l.position
), written AS (
  INSERT INTO campaign_logs AS l (job_number, position, job_id, phone, outcome, rank, reason,
    attempts, wamid, code, error, trace, message_status, at, owner, campaign_id, kind,
    template_name, template_language, sender)
  SELECT i.job_number, i.position, j.id, i.phone, i.outcome, i.rank, i.reason, i.attempts, i.wamid,
    i.code, i.error, i.trace, i.message_status, to_timestamp(i.at_ms / 1000.0), j.owner,
    j.campaign_id, j.kind, j.template_name, j.template_language, j.sender_name
  FROM incoming i JOIN bulk_jobs j ON j.number = i.job_number
  ORDER BY i.job_number, i.position
  ON CONFLICT (job_number, position) DO UPDATE SET outcome = excluded.outcome,
    rank = excluded.rank, reason = excluded.reason, attempts = excluded.attempts,
    wamid = CASE WHEN l.phone <> 0 THEN coalesce(l.wamid, excluded.wamid) END, wamid2 = CASE
      WHEN l.wamid <> excluded.wamid THEN excluded.wamid ELSE l.wamid2 END, code = excluded.code, error = excluded.error,
    trace = excluded.trace, message_status = excluded.message_status, at = excluded.at
  WHERE excluded.rank > l.rank
  RETURNING l.job_number, l.position, l.outcome, l.sender
)
SELECT w.job_number, w.outcome, b.outcome AS was, w.sender, count(*)::integer AS n
FROM written w LEFT JOIN before b ON b.job_number = w.job_number AND b.position = w.position
GROUP BY 1, 2, 3, 4;

-- name: shared_wamids
-- Graph gave one id to two recipients: nobody can say which of them was written to.
SELECT job_id, count(*)::integer AS n FROM campaign_logs
WHERE wamid IN (SELECT wamid FROM campaign_logs WHERE wamid = ANY ($1::text[])
  GROUP BY wamid HAVING count(*) > 1)
GROUP BY job_id;

-- name: logged
-- What PostgreSQL can vouch for when Redis has lost a job.
SELECT l.position, l.outcome, l.attempts, l.reason FROM campaign_logs l
JOIN bulk_jobs j ON j.number = l.job_number WHERE j.id = $1;

-- name: latest
-- What a server that lost its last seconds may not know any more.
SELECT l.job_id, j.chunk_size, l.position, l.outcome, l.attempts, l.reason FROM campaign_logs l
JOIN bulk_jobs j ON j.number = l.job_number WHERE l.at > now() - make_interval(secs => $1)
ORDER BY l.job_id, l.position;

-- name: error_counts
-- Failures by Graph's code.
SELECT l.code, count(*)::integer AS n FROM campaign_logs l JOIN bulk_jobs j ON j.number = l.job_number
WHERE j.id = $1 AND l.outcome = 'failed' AND l.code IS NOT NULL GROUP BY 1 ORDER BY 2 DESC LIMIT 21;

-- name: reason_counts
-- Failed and skipped by reason number, as the job's hash in Redis counts them.
SELECT l.reason, count(*)::integer AS n FROM campaign_logs l JOIN bulk_jobs j ON j.number = l.job_number
WHERE j.id = $1 AND l.outcome IN ('failed', 'skipped') GROUP BY 1 ORDER BY 2 DESC LIMIT 50;

-- name: table_sizes
-- For the size metrics: the guide told operators to watch campaign_logs.
SELECT c.relname AS name, pg_total_relation_size(c.oid)::bigint AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relkind = 'r';
