"""The words that generated samples are made of.

A phrase may hold slots: ``{city}`` is replaced by a phrase of the list of that name, whose own slots are filled in
turn; ``{#9}`` by a whole number from 1 to 9, ``{##300}`` by a price up to 300. No list refers to itself.
"""

from typing import Final

WORDS: Final[dict[str, str]] = {
    "name": "Ann|Bo|Carla|Dmitri|Elif|Femi|Greta|Hiro|Imogen|Jonas|Kemal|Leila|Marco|Nora|Oskar|Priya|Quentin|Rosa|Sam|"
    "Tomasz|Uma|Viktor|Wanda|Xiu|Yusuf|Zoe|Amara|Beatriz|Callum|Dalia|Esteban|Freya|Gideon|Hanneke|Ines|Joaquin",
    "surname": "Lindqvist|Okafor|Petrov|Moreau|Tanaka|Silva|Novak|Haddad|Brandt|Osei|Larsen|Rahman|Costa|Weber|Doyle|Kaya|"
    "Ferrari|Nguyen|Castillo|Bakker|Sato|Mensah|Kowalska|Byrne",
    "city": "Lisbon|Osaka|Leipzig|Porto|Nairobi|Oslo|Tallinn|Lyon|Valencia|Chicago|Montreal|Accra|Hanoi|Seville|Antwerp|Leeds|"
    "Reykjavik|Bologna|Gdansk|Auckland|Denver|Tucson|Cork|Izmir|Busan|Quito|Ghent|Utrecht",
    "street": "Mill Lane|Station Road|Canal Street|Rua das Flores|Oak Avenue|Hafenstrasse|Rue du Port|Elm Court|Bridge Street",
    "company": "Harbour Foods|Northwind Cycles|Tidewater Bank|Blue Fern Studio|Kestrel Freight|Lumen Optics|Old Mill Bakery|"
    "Quarry Analytics|Saltmarsh Energy|Foxglove Health|Pinecone Books|Redshank Travel",
    "drink": "green tea|black coffee|oat-milk latte|sparkling water|ginger tea|apple juice|cold brew|hot chocolate|mint tea|decaf",
    "food": "ramen|lentil soup|fish tacos|pad thai|mushroom risotto|chickpea curry|sourdough toast|dumplings|falafel|okra stew|"
    "baked cod|pierogi|shakshuka|rice and beans",
    "diet": "vegetarian|vegan|gluten-free|lactose intolerant|allergic to walnuts|allergic to shellfish|pescatarian|on a low-salt diet",
    "hobby": "sailing|climbing|bread baking|chess|birdwatching|film photography|cycling|choir|pottery|woodwork|running|gardening|"
    "crosswords|table tennis|knitting|old radios",
    "pet": "cat|dog|rabbit|parrot|tortoise|pair of goldfish|hamster",
    "job": "nurse|backend engineer|school teacher|accountant|architect|translator|product designer|paramedic|data analyst|"
    "carpenter|lawyer|research assistant|bus driver|pharmacist",
    "relative": "sister|brother|mother|father|daughter|son|partner|uncle|grandmother|cousin|flatmate|neighbour",
    "weekday": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "daypart": "morning|afternoon|evening",
    "month": "January|February|March|April|May|June|July|August|September|October|November|December",
    "clock": "{#12}:15 pm|{#11}:30 am|half past {#12}|quarter to {#12}|1{#9}:00|0{#9}:45|noon",
    "thing": "the invoice|my passport|the boarding pass|the lease|the slide deck|the budget sheet|the test results|the floor plan|"
    "the contract|our tickets|the signed form|the packing list|the insurance papers|the meeting notes",
    "appliance": "boiler|washing machine|router|oven|printer|heat pump|dishwasher|doorbell|thermostat|scanner",
    "errand": "call the plumber|renew the insurance|pick up the parcel|water the plants|send the deposit|cancel the subscription|"
    "book the dentist|return the library books|order new filters|charge the camera|pay the electricity bill",
    "service": "billing|checkout|search|sync|import|gateway|notifications|auth|catalog|ledger|scheduler|media|reports|inventory",
    "host": "web-1|web-2|db-primary|db-replica|cache-3|worker-{#20}|edge-{#9}|build-0{#5}",
    "component": "the queue|the index|the cache|the connection pool|the export job|the login form|the nightly backup|the webhook|"
    "the rate limiter|the search page|the mobile app|the migration",
    "symptom": "times out after {#60} seconds|returns stale data|uses twice the memory it did last week|fails on the second retry|"
    "drops about one request in {#500}|is slow only in the morning|logs the same line {#90} times|refuses the new certificate",
    "cause": "an index was dropped|the clock on {host} is off|the pool holds only {#40} connections|the retry has no jitter|"
    "two jobs share a lock|the disk is at 9{#9} %|the header is parsed twice|a timeout was lowered to {#9} s",
    "remedy": "raise the limit to {#400}|put the index back|retry with backoff|move it off the web nodes|add a read replica|"
    "roll back to v{#9}.{#20}|cache it for {#15} minutes|run it at night|split the batch in {#9}",
    "goal": "finish the report|learn Portuguese|run a half marathon|move to {city}|repaint the kitchen|save for a bicycle|"
    "pass the licence exam|read more novels|sleep before midnight|ship the beta",
    "hello": "Hi|Hey|Hello|Good morning|Hi there|Morning",
    "thanks": "thanks!|thank you|cheers|much appreciated|ta|thanks a lot, {name}|perfect, thanks|great, thank you",
    "hedge": "I think|as far as I know|if I remember right|apparently|from what I saw|to be honest|I'm fairly sure",
    "agree": "Sure|Of course|Yes|No problem|Right|Done|Absolutely|Happy to",
    "opinion": "it was worth the money|it was far too loud|the staff were kind|I'd go again|the portions were tiny|nobody answered the "
    "phone|parking was easy|the view made up for it|it took ages",
    "adjective": "quiet|cheap|central|bright|small|reliable|late|broken|excellent|confusing|heavy|fragile|urgent|optional",
}

CHAT: Final[tuple[str, ...]] = (
    "Could you {errand} on {weekday}? I won't have time before {clock}.",
    "{hello}, did {name} ever send {thing}? I need it by {weekday}.",
    "Please move my {weekday} appointment to {month} {#28}, any time after {clock}.",
    "I can't find {thing} anywhere, {hedge} it was in the shared folder from {month}.",
    "{agree}, I'll {errand} in the {daypart} and let you know.",
    "{agree}. {thing} went out to {name} {surname} at {clock}; the total is {##900}.",
    "What's a good place for {food} in {city}? Something {adjective}, not more than {#60} euros for two.",
    "We tried the {food} place near {street} and {opinion}.",
    "My {relative} is {diet}, so please check the menu before you book anything.",
    "{component} {symptom} since {weekday}. {hedge} {cause}.",
    "I looked into it: {cause}, so {component} {symptom}. I'd {remedy} first and see.",
    "Can we {remedy} today, or should that wait until {weekday}?",
    "No, the other one: {street} {#120}, not {street} {#120}.",
    "The {appliance} is making that noise again. Who fixed it last time, {name} or the man from {company}?",
    "Remind me in {#55} minutes to {errand}.",
    "{thanks}",
    "ok {thanks}",
    "ugh, {component} again. {name} says {cause}",
    "I'd rather not travel through {city} in {month}; last time I waited {#9} hours for a {adjective} connection.",
    "{name} and I want to {goal} this year. Could you make a plan with one small step a week?",
    "You told me you'd like to {goal}. Shall I set aside {weekday} {daypart}s for it?",
    "Two quotes came in: {company} asks {##900}, {company} asks {##900} but includes delivery.",
    "how many days until {month} {#28}?",
    "is {drink} ok after {clock} or will I be awake all night",
    "I've booked the table at {clock} for {#9} people under {surname}. They hold it for {#30} minutes.",
    "The train from {city} to {city} leaves at {clock} from platform {#14}.",
)

FACT: Final[tuple[str, ...]] = (
    "Prefers {drink} over {drink}",
    "Is {diet}",
    "Lives in {city}, near {street}",
    "Works as a {job} at {company}",
    "Has a {pet} named {name}",
    "Wants to {goal} by {month}",
    "{name} is the user's {relative}",
    "Birthday is {month} {#28}",
    "Enjoys {hobby} and {hobby} at weekends",
    "Doesn't take calls before {clock}",
    "Usually flies from {city}; prefers an aisle seat",
    "Asked not to be contacted on {weekday}s",
    "Pays {##900} a month to {company}",
    "Studied in {city} with {name} {surname}",
    "Reports to {name} {surname} since {month}",
    "Dislikes {food}; likes {food}",
)

NOTE: Final[tuple[str, ...]] = (
    "{name} chases {thing} on {weekday}",
    "{component} {symptom}; {cause}",
    "decided to {remedy}",
    "ask {company} about the {appliance}",
    "budget left for {month}: {##9000}",
    "{errand}",
    "load test: {#2000} req/s for {#30} min, p95 at {#120} ms",
    "hotel in {city} was {adjective}, {opinion}",
    "{name} {surname} starts on {month} {#28} as {job}",
    "open question: do we {remedy} or wait for {name}?",
)

TURNS: Final[dict[str, tuple[str, ...]]] = {
    "es": (
        "¿Puedes llamar a {name} el {weekday_es} por la tarde? Es por lo del contrato.",
        "La reunión del {weekday_es} pasa a las {#12}:30, en la misma sala.",
        "No encuentro la factura de {company}; creo que eran {##900} euros.",
        "Mi hermana vive en {city} y no come carne, tenlo en cuenta para la cena.",
    ),
    "de": (
        "Kannst du {name} am {weekday_de} anrufen? Es geht um die Rechnung über {##900} Euro.",
        "Die Besprechung am {weekday_de} beginnt erst um {#12}:30 Uhr, der Raum bleibt gleich.",
        "Ich wohne seit drei Jahren in {city} und arbeite bei {company}.",
        "Bitte keine Termine vor neun Uhr, ich bringe morgens die Kinder zur Schule.",
    ),
    "fr": (
        "Tu peux appeler {name} {weekday_fr} matin ? C'est pour le devis de {company}.",
        "La réunion de {weekday_fr} est déplacée à {#12} h 30, même salle.",
        "Je préfère le train de {#12} h 15 pour {city}, même s'il coûte {##90} € de plus.",
        "Ma fille est allergique aux noix, merci de prévenir le restaurant.",
    ),
    "zh": (
        "请帮我把{weekday_zh}下午的会议改到{#12}点,地点不变。",
        "我想订一张去上海的高铁票,{weekday_zh}早上出发,二等座就可以。",
        "上次那家酒店太吵了,这次换一家安静一点的,预算{#900}元左右。",
        "{name}说合同已经寄出了,大概{#9}天以后能收到。",
    ),
    "ja": (
        "{weekday_ja}の会議を午後{#12}時に変更してください。",
        "京都で静かな宿を探しています。予算は一泊{#30}千円くらいです。",
        "{name}さんに請求書を送っておきました。確認をお願いします。",
        "父は甘いものが好きですが、最近は控えています。",
    ),
    "ko": (
        "{weekday_ko} 오후 {#12}시에 네 명 예약해 주세요.",
        "지난번에 말한 서류를 {name} 씨에게 보내 줄 수 있어요?",
        "어머니는 매운 음식을 못 드시니까 다른 메뉴로 부탁해요.",
    ),
}

WORDS_BY_LANGUAGE: Final[dict[str, str]] = {
    "weekday_es": "lunes|martes|miércoles|jueves|viernes",
    "weekday_de": "Montag|Dienstag|Mittwoch|Donnerstag|Freitag",
    "weekday_fr": "lundi|mardi|mercredi|jeudi|vendredi",
    "weekday_zh": "星期一|星期二|星期三|星期四|星期五",
    "weekday_ja": "月曜日|火曜日|水曜日|木曜日|金曜日",
    "weekday_ko": "월요일|화요일|수요일|목요일|금요일",
}

LOG: Final[tuple[str, ...]] = (
    "{stamp} INFO  {service}.worker[{#9}] job {hex} done in {#900} ms ({#40} items)",
    "{stamp} WARN  {service} queue depth={#5000} lag={#90}s consumer={host}",
    "{stamp} ERROR {service} request {hex} failed: {cause}",
    '10.0.{#9}.{#250} - - [{day}/May/2025:{time} +0000] "GET /api/v2/{service}/{#9000} HTTP/1.1" 200 {#9000}',
    '10.0.{#9}.{#250} - - [{day}/May/2025:{time} +0000] "POST /api/v2/{service} HTTP/1.1" 50{#4} {#300}',
    'level=info ts={stamp}Z component={service} host={host} msg="{remedy}" duration={#900}ms',
    "May {day} {time} {host} systemd[1]: Started {service}.service - {company} {service}.",
    "[{time}] step {#9000}/9000 loss 1.{#999} lr {#9}e-04 tok/s {#60000}",
    "{stamp} DEBUG {service}.cache hit=1 key={service}:{hex} ttl={#3600}",
)

CODE: Final[tuple[str, ...]] = (
    "def {verb}_{noun}({noun}s: list[dict], limit: int = {#100}) -> list[dict]:\n"
    '    """The first `limit` {noun}s that have a {field}."""\n'
    '    kept = [{noun} for {noun} in {noun}s if {noun}.get("{field}")]\n    return kept[:limit]\n',
    "class {Noun}Store:\n    def __init__(self, path: str) -> None:\n        self.path = path\n        self._{field} = {{}}\n\n"
    "    def {verb}(self, key: str) -> dict | None:\n        return self._{field}.get(key)\n",
    "SELECT {field}, count(*) AS n\nFROM {noun}s\nWHERE created_at >= now() - interval '{#90} days'\n"
    "GROUP BY {field}\nORDER BY n DESC\nLIMIT {#100};",
    "UPDATE {noun}s SET {field} = '{adjective}' WHERE id IN ({#900}, {#900}, {#900});",
    'for {noun} in $(ls /var/data/{service}); do\n  gzip -9 "/var/data/{service}/${noun}" || echo "skipped ${noun}" >&2\ndone\n',
    "const {noun} = await fetch(`/api/{service}/${{id}}`);\nif (!{noun}.ok) throw new Error(`{service}: ${{{noun}.status}}`);\n"
    "return ({noun}.json()).{field};\n",
    '@app.get("/{noun}s/{{{noun}_id}}")\nasync def {verb}_{noun}({noun}_id: int, db: Session = Depends(get_db)):\n'
    '    row = db.get({Noun}, {noun}_id)\n    if row is None:\n        raise HTTPException(404, "no such {noun}")\n    return row\n',
    '[{service}]\nhost = "{host}"\nport = {#9000}\ntimeout_s = {#60}\nlog_level = "info"\n{field} = "{adjective}"\n',
    'func {Verb}{Noun}(ctx context.Context, id int64) (*{Noun}, error) {{\n\trow := db.QueryRowContext(ctx, "SELECT {field} FROM '
    '{noun}s WHERE id = $1", id)\n\tvar out {Noun}\n\tif err := row.Scan(&out.{Field}); err != nil {{\n\t\treturn nil, err\n\t}}\n'
    "\treturn &out, nil\n}}\n",
)

IDENTIFIERS: Final[dict[str, str]] = {
    "verb": "load|find|merge|count|fetch|drop|list|update|render|check",
    "noun": "order|invoice|user|ticket|session|event|parcel|report|photo|message",
    "field": "status|owner|total|city|email|priority|label|amount|expires_at|region",
}

FIXED: Final[frozenset[str]] = frozenset({"verb", "noun", "field", "service"})  # one word each within a phrase

SHORT: Final[tuple[str, ...]] = (
    "{city}", "{name}", "{drink}", "{weekday}", "{clock}", "{hobby}", "{month} {#28}", "{thanks}", "v{#9}.{#20}.{#9}", "{hex}",
    "{name} {surname}", "{##300}", "{adjective}", "{service}", "{host}", "{agree}", "2025-0{#9}-1{#9}", "{#100} %", "{food}",
)  # fmt: skip
