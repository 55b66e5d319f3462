--- Set a job's receipts, only with a newer version of them.
-- Needs    ends
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  job id      ARGV[3]  version
-- ARGV[4]  delivered ARGV[5]  read        ARGV[6]  undelivered
-- Writes   P job:<id>, P changed
-- Returns  '1' when taken
-- Repeat   no change
-- Cost     O(1)
local k = job_key(ARGV[2])
local h = call('HMGET', k, 'state', 'receipts_version')
if not h[1] or num(h[2]) >= num(ARGV[3]) then return '0' end
call('HSET', k, 'receipts_version', ARGV[3], 'delivered', ARGV[4], 'read', ARGV[5], 'undelivered', ARGV[6])
if not ENDED[h[1]] then call('SADD', P .. 'changed', ARGV[2]) end
return '1'
