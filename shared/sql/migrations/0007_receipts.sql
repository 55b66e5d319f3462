-- What webhooks say of a message: when it was first said, and what came before its row.
-- migrate:up
ALTER TABLE campaign_logs ADD COLUMN receipt_sent_at timestamptz,
  ADD COLUMN receipt_failed_at timestamptz, ADD COLUMN receipt_delivered_at timestamptz,
  ADD COLUMN receipt_read_at timestamptz, ADD COLUMN receipt_code integer,
  ADD COLUMN receipt_error text, ADD COLUMN wamid2 text;
CREATE INDEX campaign_logs_wamid2 ON campaign_logs (wamid2) WHERE wamid2 IS NOT NULL;
ALTER TABLE bulk_jobs ADD COLUMN receipts_version bigint NOT NULL DEFAULT 0;

CREATE TABLE early_receipts (
  wamid text NOT NULL,
  receipt smallint NOT NULL,
  at_ms bigint NOT NULL,
  job_id text NOT NULL,
  position integer NOT NULL,
  attempt smallint NOT NULL,
  code integer,
  error text,
  came_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (wamid, receipt, at_ms)
);
CREATE INDEX early_receipts_came ON early_receipts (came_at);

-- migrate:down
DROP TABLE early_receipts;
ALTER TABLE bulk_jobs DROP COLUMN receipts_version;
DROP INDEX campaign_logs_wamid2;
ALTER TABLE campaign_logs DROP COLUMN receipt_sent_at, DROP COLUMN receipt_failed_at,
  DROP COLUMN receipt_delivered_at, DROP COLUMN receipt_read_at, DROP COLUMN receipt_code,
  DROP COLUMN receipt_error, DROP COLUMN wamid2;
