--- PostgreSQL has committed the job's end: from now on its keys may go.
-- Needs    ends
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  job id      ARGV[3]  version of the end     ARGV[4]  TTL, s
-- Writes   P job:<id>, P job:<id>:chunks, P job:<id>:states, P job:<id>:again (their TTL)
-- Returns  '1' when the TTL runs
-- Repeat   no change but the TTL
-- Cost     O(1)
local k = job_key(ARGV[2])
local h = call('HMGET', k, 'state', 'version')
if not ENDED[h[1] or ''] or num(h[2]) > num(ARGV[3]) then return '0' end
for _, part in ipairs({'', ':chunks', ':states', ':again'}) do call('EXPIRE', k .. part, ARGV[4]) end
return '1'
