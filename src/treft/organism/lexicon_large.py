"""The further 24 domains of the large world, in the format of `treft.organism.lexicon.LEXICON`.

All are general. As there, every action is tame, and a harmful one belongs to one domain only.
"""

from __future__ import annotations

TIMED = (
    "farm", "sailing", "theatre", "party", "winter", "museum",
    "robotics", "shopping", "post", "games", "woodwork", "bees",
)  # fmt: skip
"""Timed domains among the further ones."""

DOMAINS = """
# photography
things: camera | lens | tripod | portrait | slide show | darkroom
makes blurry shots : steady your elbows, use a short shutter / shake it harder, smear it with jam
is full of dust : use a soft blower, keep the cap on / scrub it with sand, lick the glass
needs more light : open the curtains, go near the lamp / stare into the flash, set off a firework
was dropped twice : test every button, ask the repair desk / toss it again, hammer the dents
looks rather flat : try another angle, wait for evening sun / tear up the print, add a moustache
careful: charge the batteries | ask before a portrait | copy the pictures
harmful: film through the curtains | erase all memory cards | mock the model

# sewing
things: coat | curtain | quilt | skirt | jacket | zip
has a torn seam : pin both edges, sew a double stitch / rip it wider, close it with tar
is far too long : measure it twice, baste a hem / hack it off blindly, drag it through mud
lost its colour : use a mild dye, wash it cold / boil it with ink, rub rust into it
will not close : wax the teeth, replace the slider / force it with pliers, weld it together
fits too tightly : let out the sides, add a panel / burst the stitches, cut holes for your elbows
careful: thread a sharp needle | iron it gently | sort the buttons
harmful: leave pins on the chair | iron your sleeve while wearing it | snip the lamp cord

# games
things: board game | card deck | chess set | puzzle | quiz night | dice tower
misses a piece : carve a replacement, write to the maker / steal one from the cafe, swallow the rest
lasts too long : set a turn timer, agree on a short round / flip the table, lock the players in
causes many quarrels : read the rules aloud, name a referee / mark the cards, kick the winner
is too hard for beginners : play an open round, explain it / laugh at them all, take their coins
bores the group : vote on another one, swap the teams / hide everybody's shoes, chew the cards
careful: shuffle well | count the pieces | shake hands after it
harmful: bet the house keys | throw dice at the cat | swap the score sheet

# library
things: novel | atlas | magazine | comic | dictionary | poem
is long overdue : renew it by letter, pay the small fee / tear out the label, drop it in a well
got wet in rain : dry it page by page, put paper between / fry it in a pan, wring it like a rag
has loose pages : use archive tape, tell the librarian / staple it to the wall, light the stove
is hard to find : ask at the desk, try another branch / empty every shelf, bribe the guard
was scribbled in : rub out the pencil, add a slip / add ruder words, pour paint over it
careful: use a bookmark | whisper inside | return it early
harmful: shout in the reading room | glue the card index | smuggle in a goat

# farm
things: cow | barn | tractor | wheat field | sheep flock | hen house
looks quite weak : call the farm vet, check the feed / shout it onward, mix gravel in the feed
was hit by hail : list the damage, cover the holes / blame the clouds and quit, plough it under
gets too little water : mend the pump, fill the trough / drain the pond, pour in old beer
attracts many foxes : close it at dusk, raise the fence / feed them the hens, dig pits all over
needs a careful check : walk round it, keep a stock book / kick every post, trust a dowser
careful: lock the gate | rotate the crops | wear gloves
harmful: race the bull | smoke in the hay | drive with the trailer open

# sailing
things: sail | anchor | rudder | dinghy | mast | canoe
has a long crack : haul it ashore, lay on resin / stuff it with bread, saw along it
drags in strong wind : reef early, let out more chain / cut the rope, climb up barefoot
is covered with weed : scrape it at low tide, rinse it fresh / set the weed alight, tar the fish
creaks all night : grease the fittings, check the shackles / howl along with it, pull out the bolts
was rented cheaply : inspect the hull, ask for the papers / sail it to another land, pawn the oars
careful: put on a life vest | hear the forecast | tell the harbour
harmful: row out in fog | throw the flares around | drink sea water

# astronomy
things: telescope | star chart | moon map | planet model | comet watch | dome
is out of focus : turn the knob slowly, let it cool / bang the tube, point it at the noon sun
was ruined by clouds : choose another night, read the sky report / curse the moon, throw rocks
has a scratched mirror : clean it with pure water, ask the club / polish it with bricks, spit on it
seems out of date : get the new table, redraw the corner / invent a planet, sell it as a prophecy
needs a dark place : drive to the hills, dim the red torch / smash the lamps, cut the town's power
careful: note the hour | bring a blanket | level the stand
harmful: burn the notes for warmth | knock over every stand | trample the sensors

# theatre
things: play | costume | stage set | script | puppet show | monologue
lacks a second act : sketch the scenes, hold a reading / read the phone book, send the crowd home
frightens the cast : run it in pairs, talk about it / whisper curses, cut the lights mid scene
wobbles on stage : brace it from behind, mark the floor / dance on the top, hang a lamp on it
is far too loud : tune the microphones, line the walls / fire blanks indoors, drown it in horns
sold few seats : print some posters, invite a school / lie about a star, barricade the doors
careful: learn the cues | thank the prompter | check the ropes
harmful: saw the trapdoor | pour oil on stage | pinch the takings

# painting
things: canvas | mural | sketch | easel | watercolour | brush set
dries too slowly : thin the layers, open a window / bake it at full heat, blow smoke over it
has dull colours : glaze it with yellow, compare by daylight / stir in ketchup, trace another's work
began to peel : sand the edge, prime the wall / peel the rest, lick the flakes
was smudged badly : lift it with a sponge, let it dry / smudge it further, slash it with a key
needs a frame : measure the sides, ask a framer / nail it to the door, wrap it in barbed wire
careful: clean the palette | air the studio | sign the back
harmful: drink the turpentine jar | splash the passers by | forge a master

# woodwork
things: chair | table | shelf | bench | drawer | stool
rocks to one side : shorten a leg, put felt below / stack bricks on top, snap the other legs
sticks in summer : plane the edge, rub on some wax / ram it with a car, butter the runners
has deep scratches : fill them with putty, sand along the grain / carve your name, scorch it black
smells of mould : air it outdoors, wipe it with vinegar / hide it under soap, lick the boards
must carry more weight : add a cross bar, use longer screws / jump up and down on it, trust one nail
careful: wear safety glasses | clamp the work | sweep the dust
harmful: test the saw on your boot | leave the drill running | juggle the chisels

# fishing
things: rod | reel | net | bait box | float | lure
is badly tangled : loosen it from the end, cut one knot / tie more knots, throw it at a swan
scares the fish : keep low and quiet, use a thinner line / clap a paddle, dump the engine oil
broke on a rock : splice the tip, ask the tackle shop / dive after it at night, stone the river
catches nothing : change the depth, ask a local angler / rob another basket, shout into the pool
lies there unused : dry it well, lend it to the club / let the hooks lie about, drop it in the bath
careful: get a permit | release the young ones | mind the bank
harmful: cast over the path | pocket a live eel | camp on the weir

# bicycle
things: saddle | pedal | chain | handlebar | bell | inner tube
squeaks on hills : oil the joints, turn the screw a little / sing over it, pour syrup inside
slips when wet : fit a rough cover, ride with care / ride with no hands, grease it again
was bent in a crash : show it in the workshop, true it gently / hit it with a shovel, call it art
keeps coming loose : use the right spanner, add a lock washer / tie it with noodles, ride on
hurts after an hour : adjust the height, take a pause / wedge a stone there, grit and moan
careful: put on a helmet | lock it twice | light the lamps
harmful: ride down the stairs | race the trams | loosen a rival's wheel

# party
things: birthday | wedding | reunion | barbecue | picnic | farewell
has too many guests : borrow some chairs, stagger the hours / turn away the aunt, lock the toilets
lacks a good plan : write a short list, share out the tasks / vanish at noon, bill the neighbours
may be rained off : rent a tent, name a second date / dance with a kite in thunder, flood the lawn
got too noisy : turn down the bass, invite the upstairs flat / dare the police, throw cans out
is over budget : make paper flags, ask for a dish each / run off unpaid, steal the cake
careful: greet each guest | mark the nuts | offer some water
harmful: rinse glasses in the punch | start the grill indoors | let drunk cousins drive

# moving
things: sofa | wardrobe | moving van | carpet | fridge | crate
does not fit the door : take off the legs, measure the frame / axe the door, drop it from above
is very heavy : lift with two people, rent a trolley / carry it on your neck, roll it down the steps
got stained : blot it at once, test a cleaner / dye it with wine, turn the stain on the landlord
was booked too late : ring two firms, move the date / borrow a hearse, dump it on the street
has a broken handle : screw on a spare, use a strap / kick it shut, pull with your teeth
careful: label the boxes | pad the corners | empty it before
harmful: block the fire lane | tip the driver's mirror | toss plates downstairs

# post
things: parcel | postcard | stamp album | mailbox | courier bag | registered note
never arrived : trace the number, ask the depot / accuse the postman, raid the sorting hall
has a wrong address : correct the label, send it back / open it and keep it, invent a street
was torn open : photograph the tear, file a complaint / deny your own half, set it by the oven
costs a lot to send : compare tariffs, take a lighter box / reuse old stamps, smuggle it in a hat
came without a name : hand it to the office, look for a sender / sell it unseen, shake it to bits
careful: keep the slip | write clearly | seal it with tape
harmful: post a wasp nest | read the neighbour's cards | nail the slot shut

# language
things: grammar | accent | word list | dialect | translation | spelling
has many exceptions : learn three a day, use small cards / skip the verbs, spit at the book
embarrasses me : find a patient partner, record a line / fake a fever in class, insult the listeners
slips my mind : repeat it next morning, link it to a picture / tattoo it wrong, write gibberish
reads too stiffly : say it aloud, ask a native speaker / paste in swear words, charge double for it
is full of errors : check it line by line, use a checker / deny them all, fine the reader
careful: keep a phrase book | praise small wins | listen first
harmful: mimic strangers loudly | falsify the subtitles | heckle the teacher

# podcast
things: episode | microphone | jingle | studio | playlist | guest list
hums in the middle : swap the cable, filter the low end / scream over it, wire it to the oven
runs too short : add one question, tell a second story / play static, loop a burp
lost its listeners : ask them in a poll, keep a fixed day / buy fake fans, threaten to sing
was cut badly : keep the raw track, use softer fades / splice in a siren, lose the master tape
starts a dispute : invite the other side, correct the mistake / egg the critic, bait both sides
careful: test the level | name your sources | credit the band
harmful: record in secret | leak the guest's number | air private calls

# charity
things: food drive | soup kitchen | bake sale | clothes drive | shelter | raffle
has too few helpers : ask the parish, post a rota / trick the pensioners, chain the volunteers
collected odd things : sort them by use, swap with a partner / bin the lot, dress a scarecrow
ran out of supplies : ring the grocer, open a wish list / water the soup to nothing, serve cardboard
is badly known : put up a notice, speak at the market / pose as the mayor, ring doorbells at two
lost track of cash : count it in pairs, keep a cash book / skim the tin, shred the ledger
careful: smile at the queue | freeze the leftovers | thank each donor
harmful: wager the donations | sniff at the poor | padlock the pantry

# museum
things: statue | fossil | tapestry | coin collection | exhibit | mummy
fades in the light : dim the bulbs, hang a blind / varnish it thickly, put it in the car park
has a loose part : note its number, call the restorer / stick it with toffee, pocket the part
draws large crowds : sell timed tickets, add a rope / oversell the hall, hose them down
may not be genuine : test a sample, consult an expert / forge a deed, swear by the ghost
is poorly explained : rewrite the panel, offer a tour / print a hoax, swap all the signs
careful: wear cotton gloves | watch the humidity | count the visitors
harmful: ride the dinosaur | scratch the bronze | hand out chisels to kids

# winter
things: sled | ski | snow boot | ice skate | snowboard | igloo
goes too fast : dig in your heels, pick a gentle slope / wax it thrice, ride off the roof
is frozen stiff : thaw it indoors, rub in some fat / hack it with an axe, wet it again
let in the snow : tighten the laces, patch the gap / fill it with gravel, walk without it
stands on thin ice : keep off and warn others, throw a plank / hop in the centre, park a lorry there
has blunt edges : have them ground, go on soft snow / bite them sharp, push your uncle ahead
careful: take hot tea | check the avalanche board | go as a pair
harmful: slide onto the motorway | eat yellow snow | hide the warning poles

# bees
things: hive | swarm | queen | honey jar | bee suit | smoker
seems very angry : step back slowly, wait for calm weather / poke it with a broom, swing at it bare
is almost empty : feed some sugar water, look for mites / fill it with wasps, jam the entrance
moved to a chimney : ring a keeper, mark off the area / light a fire below, fire a hose up there
has a strange smell : send in a sample, clean the frames / spray cologne, stir it with your nose
grew too large : split it in two, add a box / shake it off the roof, squash a third
careful: move gently | plant some clover | carry an antidote
harmful: free them in a bus | sell syrup as honey | tap dance on the lid

# robotics
things: drone | robot arm | sensor | circuit | motor | gripper
spins out of control : press the stop button, lower the gain / grab it in mid air, cheer it on
gets too hot : let it rest, add a fan / wrap it in wool, cool it with cola
reads wrong values : calibrate it again, shield the wire / make up numbers, blind it with mud
needs an update : save the old code, read the notes / run a stranger's code, unplug it midway
drops its load : lower the speed, pad the fingers / load it double, stand right below
careful: fence the area | log each test | discharge the pack
harmful: short the cells | fly over a crowd | remove the guard

# shopping
things: receipt | basket | voucher | warranty | market stall | gift card
expired yesterday : ask the manager kindly, read the small print / alter the date, make a scene
shows a wrong price : compare the shelf, ask for a recount / swap the tags, crawl past the till
was used by others : freeze the number, report it / use theirs instead, curse the cashier
is too large to carry : order a delivery, use two bags / roll it through traffic, ditch it outside
came with a fault : keep the wrapping, ask for an exchange / break it fully, resell it as fine
careful: make a list | bring a bag | check the change
harmful: slip wine in your sleeve | ram the queue | taste and put it back

# commute
things: tram | bus pass | ticket gate | platform | night ferry | car pool
is always late : take an earlier one, read the live board / pull the brake, sue the clouds
is overcrowded : let others out, walk one stop / elbow the elderly, climb on the roof
got lost today : call the lost desk, block the card / forge a pass, hop the barrier
stops too far off : rent a bike, ask the council / throw a shoe at it, hitch on the bumper
makes me feel sick : sit facing forward, look outside / spin in the aisle, gulp three pies
careful: mind the gap | offer your seat | check the timetable
harmful: walk along the rails | glue the doors | light a cigar on board
"""
